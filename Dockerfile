# docker build -t hagane:cpu .                           for the CPU
# docker build -t hagane:cuda --build-arg DEVICE=cuda .  for NVIDIA GPUs
#
# pip's own index usually has torch's CUDA build alone, which runs on CPUs too and makes the image
# some gigabytes larger. --build-arg TORCH_INDEX=URL takes torch from the index of CPU builds that
# pytorch.org names under "Get started".
ARG PYTHON=python:3.11-slim-bookworm
ARG DEVICE=cpu

FROM ${PYTHON} AS builder
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Not pinned: the compiler of the base's own release, of which nothing reaches the final stage.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# In the place where it will run: a virtual environment holds absolute paths.
RUN python3 -m venv /opt/hagane
ENV PATH=/opt/hagane/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

# What changes least comes first: torch, the other libraries, Hagane itself.
ARG DEVICE
ARG TORCH_INDEX
COPY constraints.txt pyproject.toml ./
RUN PIP_EXTRA_INDEX_URL=${TORCH_INDEX} pip install --constraint constraints.txt torch \
    && python -c 'import sys, torch; sys.argv[1] == "cpu" or torch.version.cuda or \
sys.exit("torch is a CPU build: set TORCH_INDEX to an index of CUDA builds")' "${DEVICE}"
# Parts that not everybody needs, such as EXTRAS=cluster,postgres,s3.
ARG EXTRAS
RUN python -c 'import os, tomllib; \
project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
names = ["otel", *filter(None, os.environ.get("EXTRAS", "").split(","))]; \
extras = [line for name in names for line in project["optional-dependencies"][name]]; \
print(*project["dependencies"], *extras, sep="\n")' \
    > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

# The kernels choose their instruction set when they start: one build serves every machine.
COPY LICENSE README.md setup.py ./
COPY models models
COPY app app
RUN pip install --no-deps .

# Headers, static libraries and pip are for building. Bytecode is made here once: the root file
# system may be read-only later. Paths are those of the final stage.
WORKDIR /opt/hagane
RUN python -c 'from hagane.kernels import cpu; assert cpu.available(), "kernels not built"' \
    && site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
    && rm -rf "$site"/torch/include "$site"/torch/share "$site"/torch/test "$site"/pip "$site"/pip-* bin/pip* \
    && find "$site" -name '*.a' -delete \
    && find . -name __pycache__ -prune -exec rm -rf {} + \
    && python -m compileall -q -j 0 -x torch/testing lib \
    && install -d -o 10001 -g 10001 /volumes/data /volumes/models

FROM ${PYTHON} AS runtime-cpu

# Triton compiles the kernels for the GPU that it finds, and C code to launch them.
FROM ${PYTHON} AS runtime-cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# A stage of this file, whose base is the one above.
# hadolint ignore=DL3006
FROM runtime-${DEVICE}
LABEL org.opencontainers.image.title="Hagane" \
      org.opencontainers.image.description="One server for a language model's whole life" \
      org.opencontainers.image.licenses="Apache-2.0"

COPY --from=builder /opt/hagane /opt/hagane
# Empty folders that belong to the user below, so that fresh named volumes do too.
COPY --from=builder /volumes/ /

ENV PATH=/opt/hagane/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HAGANE_HOST=0.0.0.0 \
    HAGANE_PORT=8000 \
    HAGANE_MODELS_DIR=/models \
    HAGANE_DATA_DIR=/data \
    HAGANE_SHUTDOWN_GRACE=25 \
    HF_HOME=/data/hub \
    TRITON_CACHE_DIR=/data/triton \
    HOME=/tmp

USER 10001:10001
WORKDIR /data
VOLUME ["/data", "/models"]
EXPOSE 8000
# Running streams get HAGANE_SHUTDOWN_GRACE seconds: whoever stops this must wait longer than that.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; \
server = http.client.HTTPConnection('127.0.0.1', int(os.environ['HAGANE_PORT']), timeout=4); \
server.request('GET', '/health/ready'); sys.exit(server.getresponse().status != 200)"]
ENTRYPOINT ["hagane"]
CMD ["serve"]
