# Masks by detectron2, Mask2Former's original code, which is on no package index and is built here.
#   docker build -f infra/images/detectron2.Dockerfile --build-arg MOA_IMAGE=REGISTRY/moa-cuda:VERSION -t REGISTRY/moa-detectron2:VERSION .
ARG MOA_IMAGE
# hadolint ignore=DL3006
FROM ${MOA_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3002
USER 0:0
RUN apt-get update && apt-get install -y --no-install-recommends g++=4:12.2.0-3 git=1:2.39.5-0+deb12u* \
 && rm -rf /var/lib/apt/lists/* \
 && pip install --no-build-isolation 'detectron2 @ git+https://github.com/facebookresearch/detectron2.git@v0.6'

# hadolint ignore=DL3006
FROM ${MOA_IMAGE}
COPY --from=build /opt/moa /opt/moa
USER 10001:10001
CMD ["moa", "--help"]
