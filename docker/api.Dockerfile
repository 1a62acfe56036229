# The REST API with its reconciler; also MLflow's server. No torch.
# The wheel comes first: python -m build --wheel
#
#   docker build -f docker/api.Dockerfile -t stoplab-api .
FROM python:3.11-slim

# The same path as in the trainers' image: the API names the interpreter that a job starts with.
ENV VIRTUAL_ENV=/opt/stoplab PATH=/opt/stoplab/bin:$PATH
RUN python -m venv /opt/stoplab

COPY constraints.txt dist/stoplab-*.whl /tmp/
RUN wheel=$(ls /tmp/stoplab-*.whl) \
 && pip install --no-cache-dir -c /tmp/constraints.txt "stoplab[api] @ file://$wheel" \
 && rm /tmp/stoplab-*.whl /tmp/constraints.txt

RUN useradd --create-home --uid 10001 stoplab \
 && install --directory --owner=stoplab --mode=0700 /var/lib/stoplab
ENV STOPLAB_HOME=/var/lib/stoplab RAY_AUTH_MODE=token \
    RAY_AUTH_TOKEN_PATH=/var/lib/stoplab/tokens/ray PYTHONUNBUFFERED=1
USER stoplab
WORKDIR /home/stoplab
VOLUME /var/lib/stoplab
EXPOSE 8800

HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8800/livez', timeout=4)"]
CMD ["python", "-m", "stoplab_api.app", "--host", "0.0.0.0", "--port", "8800"]
