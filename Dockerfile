# bagau-bids in a container: non-root, the templates and the weights inside, nothing fetched at run
# time. Build arguments:
#   TORCH_INDEX         address of another torch index (CPU-only builds are gigabytes smaller)
#   TAG                 name of the image, written into the dataset_description.json of results
#   TEMPLATEFLOW_STORE  folder of this build context with a TemplateFlow store to take instead of
#                       downloading
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/venv/bin:$PATH
RUN python -m venv /opt/venv
WORKDIR /src
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml setup.py README.md LICENSE ./
COPY bagau_bids bagau_bids
RUN pip install -c constraints.txt .

FROM build AS templates
ARG TEMPLATEFLOW_STORE="templateflow"
# The README makes the COPY valid where there is no such folder.
COPY README.md ${TEMPLATEFLOW_STORE}* /opt/templateflow/
RUN rm /opt/templateflow/README.md \
    && TEMPLATEFLOW_HOME=/opt/templateflow bagau fetch \
    && chmod -R a+rX /opt/templateflow

FROM python:3.11-slim-bookworm
ARG TAG="bagau-bids"
LABEL org.opencontainers.image.title="bagau-bids" \
      org.opencontainers.image.description="White matter hyperintensities from FLAIR alone" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/venv /opt/venv
COPY --from=templates /opt/templateflow /opt/templateflow
# TEMPLATEFLOW_HOME stays unset, so that whoever runs the image can set it; the client's default
# folder leads to the store of the image.
RUN useradd --uid 1000 --create-home --shell /bin/bash bagau \
    && mkdir -p /home/bagau/.cache \
    && ln -s /opt/templateflow /home/bagau/.cache/templateflow \
    && chmod -R go=u /home/bagau
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/bagau \
    BAGAU_DOCKER_TAG=$TAG \
    OMP_NUM_THREADS=1 \
    MKL_NUM_THREADS=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    NO_ET=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 1000
WORKDIR /tmp
ENTRYPOINT ["bagau-bids"]
