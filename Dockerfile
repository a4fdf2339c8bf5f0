# One image for worker, web server and migration. The torch that PyPI has brings the CUDA libraries with it; of the host
# only the driver is needed.
FROM python:3.11.14-slim-bookworm

LABEL org.opencontainers.image.title="sequence-processor" \
      org.opencontainers.image.description="Sampled responses with exact per-token log-probabilities and entropies, as jobs" \
      org.opencontainers.image.licenses="Apache-2.0"

# g++ compiles the CPU kernels at first use.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir --disable-pip-version-check uv==0.13.9

# What changes seldom and is large, before what changes often and is small.
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN uv pip install --system --no-cache --compile-bytecode -c constraints.txt \
        -r pyproject.toml --extra postgres --extra redis
COPY . .
RUN uv pip install --system --no-cache --compile-bytecode --no-deps .

# A volume that is new takes over the owner of the folder that it is mounted on.
RUN useradd --create-home --uid 1000 seqproc \
    && install --directory --owner=seqproc --group=seqproc /results /home/seqproc/.cache
ENV HOME=/home/seqproc \
    SEQPROC_HOME=/home/seqproc \
    SEQPROC_RESULTS_DIR=/results
WORKDIR /home/seqproc
USER 1000:1000
CMD ["seqproc", "--help"]
