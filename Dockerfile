# syntax=docker/dockerfile:1
# The worker: docker build -t cutover .
# The configuration is mounted at /etc/cutover (cutover.toml, transforms/); an embedded log lives in /var/lib/cutover. Passwords come
# from the environment at run time; nothing secret is in any layer.

FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential libssl-dev pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# The dependencies alone first: this layer is built again only when they change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
 && echo 'fn main() {}' >src/main.rs \
 && touch src/lib.rs \
 && cargo build --release --locked
COPY src src
# The stand-ins may be newer than the sources, and cargo goes by that.
RUN touch src/main.rs src/lib.rs \
 && cargo build --release --locked \
 && strip -o /cutover target/release/cutover

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libssl3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin cutover \
 && install -d -o 10001 -g 10001 /etc/cutover /var/lib/cutover
COPY --from=build /cutover /usr/local/bin/cutover
COPY deploy/healthy /usr/local/bin/healthy
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
WORKDIR /etc/cutover
VOLUME /var/lib/cutover
EXPOSE 7070
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 CMD ["healthy", "7070"]
ENTRYPOINT ["cutover"]
CMD ["run"]
