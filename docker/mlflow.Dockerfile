# MLflow's tracking server, with the driver for PostgreSQL. Nothing of stoplab is in it.
#
#   docker build -f docker/mlflow.Dockerfile -t stoplab-mlflow:0.1.0 .
FROM python:3.11.15-slim-bookworm

ENV VIRTUAL_ENV=/opt/stoplab PATH=/opt/stoplab/bin:$PATH
RUN python -m venv /opt/stoplab

RUN --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir -c /constraints.txt mlflow "psycopg[binary]"

COPY --chmod=0755 docker/probe.py /usr/local/bin/probe

RUN useradd --create-home --uid 10001 stoplab \
 && install --directory --owner=stoplab --mode=0700 /var/lib/mlflow
# Without job execution: eight further processes, of no use here.
ENV MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false DO_NOT_TRACK=true \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /home/stoplab
EXPOSE 5000

HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["probe", "http://127.0.0.1:5000/health"]
# The host check wants every name it is called by, with its port: give them again where it is
# called by others.
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--workers", "2", \
     "--backend-store-uri", "postgresql+psycopg:///?service=mlflow", \
     "--artifacts-destination", "/var/lib/mlflow/artifacts", \
     "--allowed-hosts", "mlflow:5000,localhost:5000,127.0.0.1:5000"]
