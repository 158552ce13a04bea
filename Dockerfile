# JupyterLab on the notebooks, with the data, as an image. It was written without a container engine at hand: it has not been
# built. Please report what fails.
#
#   docker build -t multitask-recommender .
#   docker run --rm -p 8888:8888 multitask-recommender                 # JupyterLab; its address with a token is printed
#   docker run --rm -v "$PWD/data:/home/reader/study/data" multitask-recommender make run
#
# The wheel with MovieLens-100k is installed into the image. Its licence forbids redistribution: build the image, do not publish it.
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc git libc6-dev make \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 reader
USER reader
WORKDIR /home/reader/study
ENV KEDRO_DISABLE_TELEMETRY=1 PIP_NO_CACHE_DIR=1

COPY --chown=reader:reader . .
# A build of PyTorch for the CPU is enough and several GB smaller; an index that has one may be named.
ARG PIP_EXTRA_INDEX_URL=
# The same stamps as those of the Makefile, so that its commands find everything installed.
RUN make .venv/.report data

EXPOSE 8888
CMD [".venv/bin/jupyter", "lab", "notebooks", "--ip=0.0.0.0", "--port=8888", "--no-browser"]
