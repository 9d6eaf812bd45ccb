# bagau-bids in a container: the templates and the weights inside, nothing fetched at run time, for
# any user, on a read-only root. Build arguments:
#   BASE                Python image, also as name@sha256:digest
#   VARIANT             cuda (runs with and without a GPU), or cpu (gigabytes smaller, needs
#                       TORCH_INDEX)
#   TORCH_INDEX         address of another torch index, the CPU builds say (pytorch.org)
#   TEMPLATEFLOW_STORE  a TemplateFlow store in this build context, taken instead of downloading:
#                       a folder whose name starts with templateflow
#   TAG                 name of the image, written into the dataset_description.json of results
#   REVISION            commit the image is built from
# The build secret pip.conf, if given, has the settings of pip.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS dependencies
ARG VARIANT=cuda
ARG TORCH_INDEX=""
WORKDIR /src
COPY constraints.txt pyproject.toml tools/install_in_image.sh tools/prune_itk.py ./
RUN --mount=type=secret,id=pip.conf,target=/etc/xdg/pip/pip.conf \
    sh install_in_image.sh dependencies "$VARIANT" "$TORCH_INDEX"

FROM dependencies AS package
COPY setup.py README.md LICENSE tools/check_installation.sh ./
COPY bagau_bids bagau_bids
RUN --mount=type=secret,id=pip.conf,target=/etc/xdg/pip/pip.conf \
    sh install_in_image.sh package /package

FROM dependencies AS templates
ARG TEMPLATEFLOW_STORE=""
COPY --from=package /package/ /
# The licence makes the COPY valid where no store is given; a store that is not there is an error.
COPY LICENSE ${TEMPLATEFLOW_STORE:-LICENSE} /opt/templateflow/
RUN rm /opt/templateflow/LICENSE \
    && sh install_in_image.sh templates

FROM ${BASE}
RUN useradd --uid 1000 --create-home bagau
# What changes least comes first, so that a new release brings a small layer.
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=templates /opt/templateflow /opt/templateflow
COPY --from=package /package/ /
ARG BASE
ARG TAG="bagau-bids"
ARG REVISION=""
LABEL org.opencontainers.image.title="bagau-bids" \
      org.opencontainers.image.description="White matter hyperintensities from FLAIR alone" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.authors="The bagau-bids developers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="$BASE"
# Whoever runs the image may set another TEMPLATEFLOW_HOME. Apptainer replaces HOME, so the client's
# default folder below it would not do.
ENV PATH=/opt/venv/bin:$PATH \
    TEMPLATEFLOW_HOME=/opt/templateflow \
    BAGAU_DOCKER_TAG=$TAG \
    OMP_NUM_THREADS=1 \
    MKL_NUM_THREADS=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    NO_ET=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 1000
WORKDIR /tmp
RUN ["bagau-bids", "--version"]
ENTRYPOINT ["bagau-bids"]
