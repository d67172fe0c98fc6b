# Captions by LAVIS, BLIP-2's original code: it wants a transformers of 2023, so it has an interpreter of its own.
#   docker build -f infra/images/lavis.Dockerfile --build-arg MOA_IMAGE=REGISTRY/moa-cuda:VERSION -t REGISTRY/moa-lavis:VERSION .
ARG MOA_IMAGE
FROM python:3.11.13-slim-bookworm AS build
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update && apt-get install -y --no-install-recommends g++=4:12.2.0-3 \
 && rm -rf /var/lib/apt/lists/* \
 && python -m venv /opt/lavis \
 && /opt/lavis/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0 \
 && /opt/lavis/bin/pip install salesforce-lavis==1.0.2 'numpy<2' 'pandas<3'

# hadolint ignore=DL3006
FROM ${MOA_IMAGE}
COPY --from=build /opt/lavis /opt/lavis
ENV MOA_LAVIS_PYTHON=/opt/lavis/bin/python
USER 10001:10001
CMD ["moa", "--help"]
