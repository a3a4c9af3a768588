# The image is the published server package, built from this tree and installed as a user
# would install it.
FROM node:24-bookworm-slim AS build
WORKDIR /build
COPY . .
RUN npm ci && npm pack --workspace checkpointd-server --pack-destination /tmp
RUN npm install --prefix /opt/checkpointd --omit=optional --no-audit --no-fund /tmp/checkpointd-server-*.tgz

FROM node:24-bookworm-slim
COPY --from=build /opt/checkpointd /opt/checkpointd
ENV NODE_ENV=production CHECKPOINTD_HOST=0.0.0.0
USER node
EXPOSE 8080
# Needs DATABASE_URL: the embedded Postgres is for trying things out and is not in the image.
ENTRYPOINT ["/opt/checkpointd/node_modules/.bin/checkpointd"]
CMD ["serve"]
