# Ray nodes: trainers and sweeps. The wheel comes first: python -m build --wheel
#
#   docker build -f docker/trainer.Dockerfile -t stoplab-trainer .
#   docker build --build-arg BASE=ubuntu:24.04 …        without CUDA, for CPU nodes
#
# torch's wheels bring their own CUDA libraries; the base only has to fit the host's driver.
ARG BASE=nvidia/cuda:12.8.1-base-ubuntu24.04
FROM ${BASE}

RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates curl git python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*

# The same path as in the API's image: the API names the interpreter that a job starts with.
ENV VIRTUAL_ENV=/opt/stoplab PATH=/opt/stoplab/bin:$PATH
RUN python3 -m venv /opt/stoplab

COPY constraints.txt dist/stoplab-*.whl /tmp/
RUN wheel=$(ls /tmp/stoplab-*.whl) \
 && pip install --no-cache-dir -c /tmp/constraints.txt "stoplab[train,sweep] @ file://$wheel" \
 && rm /tmp/stoplab-*.whl /tmp/constraints.txt

RUN useradd --create-home --uid 10001 stoplab \
 && install --directory --owner=stoplab --mode=0700 /var/lib/stoplab
ENV STOPLAB_HOME=/var/lib/stoplab RAY_AUTH_MODE=token \
    RAY_AUTH_TOKEN_PATH=/var/lib/stoplab/tokens/ray RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
USER stoplab
WORKDIR /home/stoplab
VOLUME /var/lib/stoplab

CMD ["ray", "start", "--head", "--block", "--port=6379", "--dashboard-host=0.0.0.0", \
     "--dashboard-port=8265", "--disable-usage-stats"]
