import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.time.Instant;
import java.util.Set;
import java.util.concurrent.ThreadLocalRandom;

/**
 * A provider that posts results with Java's HttpClient, and retries as docs/providers.md says. Input and output are
 * those of provider.py. The client has its default settings: it offers to switch to HTTP/2, and throws for a 401
 * without WWW-Authenticate.
 */
final class Provider {
    private static final Set<Integer> RETRYABLE = Set.of(408, 429, 500, 502, 503, 504);
    private static final HttpClient CLIENT = HttpClient.newHttpClient();

    private static final class Reply {
        final int status;
        final long retryAfterMs;
        final String text;

        Reply(int status, long retryAfterMs, String text) {
            this.status = status;
            this.retryAfterMs = retryAfterMs;
            this.text = text;
        }
    }

    private static Reply send(HttpRequest request) throws InterruptedException {
        try {
            HttpResponse<String> reply = CLIENT.send(request, HttpResponse.BodyHandlers.ofString());
            long seconds = reply.headers().firstValueAsLong("Retry-After").orElse(0);
            return new Reply(reply.statusCode(), 1_000 * seconds, reply.body());
        } catch (IOException error) {
            return new Reply(0, 0, error.toString());
        }
    }

    private static Reply postUntil(Instant deadline, HttpRequest request) throws InterruptedException {
        for (long delay = 250; ; delay = Math.min(2 * delay, 8_000)) {
            Reply reply = send(request);
            if (reply.status > 0 && !RETRYABLE.contains(reply.status)) {
                return reply;
            }
            long jittered = (long) (delay * ThreadLocalRandom.current().nextDouble(0.75, 1.25));
            long wait = Math.max(jittered, reply.retryAfterMs);
            if (!Instant.now().plusMillis(wait).isBefore(deadline)) {
                return reply;
            }
            Thread.sleep(wait);
        }
    }

    public static void main(String[] arguments) throws Exception {
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, "UTF-8"));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] callback = line.split("\\|", 4);
            HttpRequest request = HttpRequest.newBuilder(URI.create(callback[0]))
                    .timeout(Duration.ofSeconds(10))
                    .header("Content-Type", "application/json")
                    .header("X-Callback-Token", callback[1])
                    .POST(HttpRequest.BodyPublishers.ofString(callback[3]))
                    .build();
            Reply reply = postUntil(Instant.parse(callback[2]), request);
            System.out.println(reply.status + "|" + reply.text.replace('\n', ' '));
        }
    }
}
