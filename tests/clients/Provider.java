import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.time.Instant;
import java.util.Set;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import org.eclipse.jetty.client.api.ContentResponse;
import org.eclipse.jetty.client.util.StringContentProvider;

/**
 * A provider that posts results with Java's HttpClient, or with Jetty's if the argument is "jetty", and retries as
 * docs/providers.md says. Input and output are those of provider.py. Both clients have their default settings. Java's
 * offers to switch to HTTP/2, and both fail on a 401 without WWW-Authenticate.
 */
final class Provider {
    private static final Set<Integer> RETRYABLE = Set.of(408, 429, 500, 502, 503, 504);

    private interface Client {
        Reply post(URI url, String token, String body) throws Exception;
    }

    private static Client jdk() {
        HttpClient client = HttpClient.newHttpClient();
        return (url, token, body) -> {
            HttpRequest request = HttpRequest.newBuilder(url)
                    .timeout(Duration.ofSeconds(10))
                    .header("Content-Type", "application/json")
                    .header("X-Callback-Token", token)
                    .POST(HttpRequest.BodyPublishers.ofString(body))
                    .build();
            HttpResponse<String> reply = client.send(request, HttpResponse.BodyHandlers.ofString());
            long seconds = reply.headers().firstValueAsLong("Retry-After").orElse(0);
            return new Reply(reply.statusCode(), 1_000 * seconds, reply.body());
        };
    }

    private static Client jetty() throws Exception {
        org.eclipse.jetty.client.HttpClient client = new org.eclipse.jetty.client.HttpClient();
        client.start();
        return (url, token, body) -> {
            ContentResponse reply = client.POST(url)
                    .timeout(10, TimeUnit.SECONDS)
                    .header("X-Callback-Token", token)
                    .content(new StringContentProvider("application/json", body, StandardCharsets.UTF_8))
                    .send();
            String seconds = reply.getHeaders().get("Retry-After");
            long wait = seconds == null ? 0 : 1_000 * Long.parseLong(seconds);
            return new Reply(reply.getStatus(), wait, reply.getContentAsString());
        };
    }

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

    private static Reply attempt(Client client, URI url, String token, String body) throws InterruptedException {
        try {
            return client.post(url, token, body);
        } catch (InterruptedException error) {
            throw error;
        } catch (Exception error) {
            return new Reply(0, 0, error.toString());
        }
    }

    private static Reply postUntil(Instant deadline, Client client, URI url, String token, String body)
            throws InterruptedException {
        for (long delay = 250; ; delay = Math.min(2 * delay, 8_000)) {
            Reply reply = attempt(client, url, token, body);
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
        Client client = arguments.length > 0 && arguments[0].equals("jetty") ? jetty() : jdk();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in, "UTF-8"));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] callback = line.split("\\|", 4);
            Reply reply = postUntil(
                    Instant.parse(callback[2]), client, URI.create(callback[0]), callback[1], callback[3]);
            System.out.println(reply.status + "|" + reply.text.replace('\n', ' '));
        }
        // Jetty's threads keep the process running.
        System.exit(0);
    }
}
