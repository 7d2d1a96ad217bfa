"""A provider with a tool, in FastAPI. The platform posts {"callback": {…}, "city": "…"} to /work.

    uvicorn fastapi_provider:app --port 3000
"""

import logging
from typing import Any

from fastapi import BackgroundTasks, FastAPI
from pydantic import BaseModel

from callback import post_callback

# httpx logs each URL at level INFO, and a URL can contain a token.
logging.getLogger("httpx").setLevel(logging.WARNING)
log = logging.getLogger("uvicorn.error")
app = FastAPI()


class Work(BaseModel):
    callback: dict[str, Any]
    city: str


@app.post("/work", status_code=202)
async def accept(work: Work, background: BackgroundTasks) -> None:
    # Put work that must survive a restart into a queue.
    background.add_task(answer, work)


async def answer(work: Work) -> None:
    try:
        result = await weather(work.city)
    except Exception as error:
        result = {"error": {"code": "WEATHER_UNAVAILABLE", "message": str(error)}}
    try:
        receipt = await post_callback(work.callback, result)
        log.info("delivered %s", receipt)
    except RuntimeError as error:
        log.error("%s", error)


async def weather(city: str) -> dict[str, Any]:
    if not city:
        raise ValueError("no city was given")
    return {"city": city, "temperature": 21.5, "unit": "C"}
