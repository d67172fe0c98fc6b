# Prefect's server and worker, Ray on CPUs, moa's commands. From the project's folder:
#   docker build -f infra/images/cpu.Dockerfile --build-arg TORCH_INDEX=URL -t REGISTRY/moa-cpu:VERSION .
# TORCH_INDEX: PyTorch's own index with its builds for CPUs; without it pip's usual one, whose build brings gigabytes of CUDA.
FROM python:3.11.13-slim-bookworm AS build
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /opt/moa
COPY constraints.txt ./
RUN /opt/moa/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0 -c constraints.txt
COPY pyproject.toml README.md LICENSE ./
COPY flows flows
COPY preprocessing preprocessing
COPY moa_model moa_model
COPY evaluation evaluation
COPY infra infra
RUN /opt/moa/bin/pip install . -c constraints.txt

FROM python:3.11.13-slim-bookworm
# Nobody's home but moa's: no shell to log in with, no password. Kubernetes wants a number.
RUN groupadd --gid 10001 moa && useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin moa \
 && mkdir -p /srv/moa && chown moa:moa /srv/moa
COPY --from=build /opt/moa /opt/moa
ENV PATH=/opt/moa/bin:$PATH PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1 RAY_USAGE_STATS_ENABLED=0
WORKDIR /srv/moa
USER 10001:10001
CMD ["moa", "--help"]
