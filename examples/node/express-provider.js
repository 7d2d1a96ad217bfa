// A provider with a tool, in Express. The platform posts {"callback": {…}, "city": "…"} to /work.
import express from 'express'
import { postCallback } from './callback.js'

const app = express()

app.post('/work', express.json(), (request, response) => {
  const { callback, city } = request.body
  response.sendStatus(202)
  work(callback, city).catch((error) => console.error(error.message))
})

// Put work that must survive a restart into a queue.
async function work (callback, city) {
  let result
  try {
    result = await weather(city)
  } catch (error) {
    result = { error: { code: 'WEATHER_UNAVAILABLE', message: error.message } }
  }
  const receipt = await postCallback(callback, result)
  console.log('delivered', JSON.stringify(receipt))
}

async function weather (city) {
  if (!city) throw new Error('no city was given')
  return { city, temperature: 21.5, unit: 'C' }
}

const server = app.listen(Number(process.env.PORT ?? 3000), '127.0.0.1', () => {
  console.log('listening', server.address().port)
})
