// A provider that posts results with Go's net/http, and retries as docs/providers.md says. Input and output are those of
// provider.py.
package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const maxDelay = 8 * time.Second

type reply struct {
	status     int
	retryAfter time.Duration
	text       string
}

func post(client *http.Client, url, token, body string) reply {
	request, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return reply{text: err.Error()}
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("X-Callback-Token", token)
	response, err := client.Do(request)
	if err != nil {
		return reply{text: err.Error()}
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return reply{text: err.Error()}
	}
	seconds, _ := strconv.Atoi(response.Header.Get("Retry-After"))
	return reply{response.StatusCode, time.Duration(seconds) * time.Second, string(text)}
}

func retryable(status int) bool {
	switch status {
	case 0, 408, 429, 500, 502, 503, 504:
		return true
	}
	return false
}

func postUntil(client *http.Client, deadline time.Time, url, token, body string) reply {
	for delay := 250 * time.Millisecond; ; delay *= 2 {
		if delay > maxDelay {
			delay = maxDelay
		}
		last := post(client, url, token, body)
		if !retryable(last.status) {
			return last
		}
		wait := time.Duration(float64(delay) * (0.75 + rand.Float64()/2))
		if wait < last.retryAfter {
			wait = last.retryAfter
		}
		if !time.Now().Add(wait).Before(deadline) {
			return last
		}
		time.Sleep(wait)
	}
}

func main() {
	client := &http.Client{Timeout: 10 * time.Second}
	input := bufio.NewReader(os.Stdin)
	for {
		line, err := input.ReadString('\n')
		if err != nil {
			return
		}
		callback := strings.SplitN(strings.TrimSuffix(line, "\n"), "|", 4)
		deadline, err := time.Parse(time.RFC3339, callback[2])
		if err != nil {
			panic(err)
		}
		last := postUntil(client, deadline, callback[0], callback[1], callback[3])
		fmt.Printf("%d|%s\n", last.status, strings.ReplaceAll(last.text, "\n", " "))
	}
}
