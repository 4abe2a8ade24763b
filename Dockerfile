# docker build -t optserve .
# docker run -p 8000:8000 -v optserve:/data -e OPTSERVE_INSECURE=true optserve
#
# A container listens on every address of its network, and a server without API keys refuses to: OPTSERVE_INSECURE is
# your word that only machines you trust can reach it. Every other setting is an OPTSERVE_… variable too.
# pip's own variables are build arguments: `--build-arg PIP_EXTRA_INDEX_URL=…` for an index with torch for the CPU alone.

FROM python:3.12-slim AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
RUN python -m venv /opt/optserve
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY client client
COPY server server
COPY alembic alembic
COPY recipes recipes
RUN /opt/optserve/bin/pip install --no-cache-dir -c constraints.txt '.[server,postgres]'

FROM python:3.12-slim
RUN useradd --system --uid 10001 --create-home --home-dir /data optserve
COPY --from=build /opt/optserve /opt/optserve
ENV NUMBA_CACHE_DIR=/data/.numba \
    PATH=/opt/optserve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OPTSERVE_HOST=0.0.0.0 \
    OPTSERVE_PORT=8000 \
    OPTSERVE_DATA_DIR=/data
USER optserve
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"OPTSERVE_PORT\"]}/healthz', timeout=3)"]
CMD ["optserve", "serve"]
