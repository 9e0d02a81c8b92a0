# hf-ci in a container: on the CPU, as an ordinary user, offline unless told otherwise.
#
#   docker build -t hf-ci .
#   docker run --rm --network none -v "$PWD:/data" hf-ci scan ./my-adapter
#   docker run --rm --network none -v "$PWD:/data" --user "$(id -u)" hf-ci run --format github --output json=report.json
#
# The last line is the Action's job: what .hf-ci.yaml lists, with a report beside it. For adapters on the Hub leave
# --network out and add -e HF_HUB_OFFLINE=0. Keep finished classes with -v hf-ci-cache:/cache.
#
# Build arguments: PYTHON, an image (with a digest, where builds have to be the same); PIP_EXTRA_INDEX_URL, an index with
# torch for CPUs alone, without which the GPU libraries come along.
ARG PYTHON=python:3.12-slim

FROM ${PYTHON} AS build
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/hf-ci
ENV PATH=/opt/hf-ci/bin:$PATH
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cards cards
COPY hf_ci hf_ci
RUN pip install -c constraints.txt .

FROM ${PYTHON}
# git tells what --changed-since asks; the checkout belongs to whoever runs the container
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /data \
    && useradd --uid 1000 --no-create-home hf-ci \
    && install --directory --mode 1777 /cache
COPY --from=build /opt/hf-ci /opt/hf-ci
# any uid may run it: home is where everybody may write, and needs no entry in passwd
ENV PATH=/opt/hf-ci/bin:$PATH HOME=/tmp LOGNAME=hf-ci XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface
ENV HF_HUB_OFFLINE=1 PYTHONSAFEPATH=1
USER 1000
WORKDIR /data
ENTRYPOINT ["hf-ci"]
CMD ["--help"]
