# callback-ingress as a service: docker build --tag callback-ingress .
#
# The service listens on all addresses of its container, so it refuses to start without configured keys. Set these from
# the secrets of the deployment, never in an image:
#   CALLBACK_INGRESS__TOKEN__KEYS='["k1:<base64 of 32 bytes or more>"]'       signing keys of callback tokens
#   CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS='["<16 characters or more>"]'    service keys of the platform
# or, for mounted files, CALLBACK_INGRESS__TOKEN__KEYS_FILE and CALLBACK_INGRESS__PLATFORM__SERVICE_KEYS_FILE. Also set:
#   CALLBACK_INGRESS__STORE__URL=redis://…                                    conversations then outlive the container
#   CALLBACK_INGRESS__HTTP__PUBLIC_BASE_URL=https://…                         the URL at which providers reach port 8080
# config/default.toml documents all settings.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build

# The dependencies, in a layer that depends only on the manifests and Cargo.lock. The sources are empty placeholders. Cargo
# reads the manifests of the test crates and does not build them.
COPY Cargo.toml Cargo.lock ./
COPY fuzz/checks/Cargo.toml fuzz/checks/
COPY tests/support/Cargo.toml tests/support/
RUN mkdir src \
    && touch src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --locked --profile dist --bin callback-ingress \
    && rm -r src

# The program. The copied files can be older than the build of the placeholders, so touch the crate roots.
COPY config config
COPY src src
RUN touch src/lib.rs src/main.rs \
    && cargo build --locked --profile dist --bin callback-ingress

FROM debian:bookworm-slim
# No package is needed: the image has libc and libgcc, and the program contains its certificate authorities.
COPY --from=build /build/target/dist/callback-ingress /usr/local/bin/callback-ingress

ENV CALLBACK_INGRESS__HTTP__PUBLIC_ADDR=0.0.0.0:8080 \
    CALLBACK_INGRESS__HTTP__PLATFORM_ADDR=0.0.0.0:8081
# 8080 for providers, through the gateway; 8081 for the platform, not reachable from outside.
EXPOSE 8080 8081

USER 65532:65532
STOPSIGNAL SIGTERM
# Checks that the process is alive, not that Redis responds: restarting all instances would not repair Redis.
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
