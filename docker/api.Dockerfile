# The REST API with its reconciler. No torch: the build fails if one came along.
# The wheel comes first: python -m build --wheel
#
#   docker build -f docker/api.Dockerfile -t stoplab-api:0.1.0 .
FROM python:3.11.15-slim-bookworm

# The same path as in the trainers' image: the API names the interpreter that a job starts with.
ENV VIRTUAL_ENV=/opt/stoplab PATH=/opt/stoplab/bin:$PATH
RUN python -m venv /opt/stoplab

RUN --mount=type=bind,source=dist,target=/dist \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir -c /constraints.txt "stoplab[api,s3] @ file://$(ls /dist/stoplab-*.whl)" \
 && python -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is not None)"

COPY --chmod=0755 docker/probe.py /usr/local/bin/probe

# Folders that volumes cover: a new volume takes its owner from them.
RUN useradd --create-home --uid 10001 stoplab \
 && install --directory --owner=stoplab --mode=0700 /var/lib/stoplab /var/lib/stoplab/jobs
# Where Ray's token will lie, not the token.
# hadolint ignore=DL3064
ENV STOPLAB_HOME=/var/lib/stoplab RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/run/secrets/ray_token \
    STOPLAB_DATA_ROOTS=/data \
    MLFLOW_DISABLE_TELEMETRY=true PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /home/stoplab
EXPOSE 8800

HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["probe", "http://127.0.0.1:8800/livez"]
CMD ["python", "-m", "stoplab_api.app", "--host", "0.0.0.0", "--port", "8800"]
