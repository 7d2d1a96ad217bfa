# callback-ingress as a service: docker build --tag callback-ingress .
#
# It listens on every address of its container, which the program refuses to do without keys of the operator's: a
# container that was given none ends at once with a message that names what is missing, rather than making up keys
# that no other instance shares. So a deployment sets, from its secrets and never in an image:
#   CALLBACK_INGRESS__TOKEN__KEYS='["k1:<base64 of 32 bytes or more>"]'    what callback tokens are signed with
#   CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS='["<16 characters or more>"]' what the platform shows
# or, from mounted secrets, CALLBACK_INGRESS__TOKEN__KEYS_FILE and CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS_FILE;
#   CALLBACK_INGRESS__STORE__URL=redis://…                                 where conversations outlive the container
#   CALLBACK_INGRESS__HTTP__PUBLIC_BASE_URL=https://…                      what providers reach port 8080 as
# Everything else that can be set: config/default.toml.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build

# The dependencies, in a layer that only the manifests and Cargo.lock make stale. Empty sources stand in for ours. Cargo
# reads the manifests of the test crates and builds nothing of them.
COPY Cargo.toml Cargo.lock ./
COPY fuzz/checks/Cargo.toml fuzz/checks/
COPY tests/support/Cargo.toml tests/support/
RUN mkdir src \
    && touch src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --locked --profile dist --bin callback-ingress \
    && rm -r src

# The program. The two roots are touched since copied files may be older than what was built of their stand-ins.
COPY config config
COPY src src
RUN touch src/lib.rs src/main.rs \
    && cargo build --locked --profile dist --bin callback-ingress

FROM debian:bookworm-slim
# No package is added: the program links libc and libgcc, which are there, and brings the certificate authorities that
# it trusts.
COPY --from=build /build/target/dist/callback-ingress /usr/local/bin/callback-ingress

ENV CALLBACK_INGRESS__HTTP__PUBLIC_ADDR=0.0.0.0:8080 \
    CALLBACK_INGRESS__HTTP__PLATFORM_ADDR=0.0.0.0:8081
# 8080 for providers, the one that a gateway exposes; 8081 for the platform, inside.
EXPOSE 8080 8081

USER 65532:65532
STOPSIGNAL SIGTERM
# Asks whether the process is alive, and not whether Redis answers: restarting every instance would not bring Redis back.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["callback-ingress", "healthcheck"]
ENTRYPOINT ["callback-ingress"]
CMD ["serve"]

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="callback-ingress" \
      org.opencontainers.image.description="Takes the callbacks of asynchronous LLM and tool providers and puts each conversation's results, in order, on its routing channel." \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
