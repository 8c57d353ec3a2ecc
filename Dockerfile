# syntax=docker/dockerfile:1
# Tunewright in a container. docs/how-to/run-in-docker.md says how to run it.
#
#     docker build -t tunewright:gpu .
#     docker build -t tunewright:cpu --build-arg VARIANT=cpu .
#
# hadolint global ignore=DL3008,DL3013,DL3042
# (DL3008: the distribution's versions are used; DL3013: requirements/gpu.txt has the versions; DL3042: pip's cache is a mount)

ARG VARIANT=gpu
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-runtime-ubuntu24.04@sha256:c3fde347d52d578c84fd644bc177bc7ec333feaf11550d990da4084d7612e4c7
ARG PYTHON_IMAGE=python:3.12-slim


# System packages that both the build and the final image need.

FROM ${CUDA_IMAGE} AS base-gpu
# Triton compiles small stubs when vLLM and training start, which needs a compiler and Python's headers.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ gcc libc6-dev libnuma1 python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

FROM ${PYTHON_IMAGE} AS base-cpu
# vLLM's CPU build is linked against libnuma, which its wheel does not contain.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*


# /opt/tunewright: a virtual environment, which is copied into the final image.

FROM base-gpu AS build-gpu
WORKDIR /src
RUN python3 -m venv /opt/tunewright
COPY . .
# One command, so that the service's dependency on the SDK resolves to the one in client/.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/tunewright/bin/pip install --constraint requirements/gpu.txt ./client '.[gpu,postgres,s3]'

FROM base-cpu AS build-cpu
WORKDIR /src
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
COPY . .
# `make setup` installs the two distributions as editable; they are installed again as copies, since the final image has
# no /src.
RUN --mount=type=cache,target=/root/.cache/pip \
    make setup VENV=/opt/tunewright \
    && /opt/tunewright/bin/pip install --force-reinstall --no-deps --no-build-isolation ./client .

# COPY --from accepts no build argument, FROM does.
# hadolint ignore=DL3006
FROM build-${VARIANT} AS build


# hadolint ignore=DL3006
FROM base-${VARIANT} AS final

LABEL org.opencontainers.image.title="Tunewright" \
      org.opencontainers.image.description="Fine-tune language models over OpenAI's API and serve the results." \
      org.opencontainers.image.licenses="Apache-2.0"

RUN groupadd --gid 10001 tunewright \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin tunewright \
    && install -d -m 0700 -o tunewright -g tunewright /data

COPY --from=build /opt/tunewright /opt/tunewright

# Listening on all addresses needs TUNEWRIGHT_API_KEY at run time; there is no default.
# HOME and the caches (the hub's, vLLM's) are on the volume: the user cannot write anywhere else.
ENV PATH=/opt/tunewright/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/data \
    XDG_CACHE_HOME=/data/cache \
    TUNEWRIGHT_HOST=0.0.0.0 \
    TUNEWRIGHT_PORT=8000 \
    TUNEWRIGHT_DATA_DIR=/data/tunewright

USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000

# http.client, unlike urllib, ignores proxy variables.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import http.client as h, os, ssl, sys; at = ('127.0.0.1', int(os.environ['TUNEWRIGHT_PORT'])); c = h.HTTPSConnection(*at, timeout=4, context=ssl._create_unverified_context()) if os.environ.get('TUNEWRIGHT_TLS_CERT') else h.HTTPConnection(*at, timeout=4); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]

# The supervisor is process 1: it reaps orphans itself, and stops everything within 15 s of SIGTERM.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tunewright"]
CMD ["serve"]
