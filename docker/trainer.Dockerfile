# Ray nodes: trainers and sweeps. The wheel comes first: python -m build --wheel
#
#   docker build -f docker/trainer.Dockerfile -t stoplab-trainer:0.1.0 .
#   docker build --build-arg BASE=ubuntu:24.04 …        for nodes without a GPU
#
# torch's wheels bring their own CUDA libraries; the base tells the container's runtime which
# driver they need (CUDA 13: 580 or newer).
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${BASE}

# wget is for KubeRay's probes, git for the commit that a run notes.
# Versions are the base's own: the archive keeps no others.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates git python3 python3-venv wget \
 && rm -rf /var/lib/apt/lists/*

# The same path as in the API's image: the API names the interpreter that a job starts with.
ENV VIRTUAL_ENV=/opt/stoplab PATH=/opt/stoplab/bin:$PATH
RUN python3 -m venv /opt/stoplab

RUN --mount=type=bind,source=dist,target=/dist \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir -c /constraints.txt "stoplab[train,sweep,s3] @ file://$(ls /dist/stoplab-*.whl)"

COPY --chmod=0755 docker/probe.py /usr/local/bin/probe

# Folders that volumes cover: a new volume takes its owner from them.
RUN useradd --create-home --uid 10001 stoplab \
 && install --directory --owner=stoplab --mode=0700 \
    /var/lib/stoplab /var/lib/stoplab/jobs /var/lib/ray
# Where Ray's token will lie, not the token.
# hadolint ignore=DL3064
ENV STOPLAB_HOME=/var/lib/stoplab RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/run/secrets/ray_token \
    STOPLAB_DATA_ROOTS=/data \
    RAY_AIR_NEW_OUTPUT=0 RAY_DEDUP_LOGS=0 RAY_TRAIN_ENABLE_PRINT_PATCH=0 \
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.2 RAY_USAGE_STATS_ENABLED=0 \
    RAY_JOB_START_TIMEOUT_SECONDS=86400 \
    MLFLOW_DISABLE_TELEMETRY=true PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /home/stoplab

# The port of a node's own agent, on the head and on workers.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
  CMD ["probe", "http://127.0.0.1:52365/api/local_raylet_healthz"]
CMD ["ray", "start", "--head", "--block", "--port=6379", "--dashboard-host=0.0.0.0", \
     "--dashboard-port=8265", "--disable-usage-stats"]
