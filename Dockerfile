# The pinned image: everything that can move a result, by digest or hash. docker/README.md explains.
#
#   docker build -t n4090-kit .                                   run recipes on a GPU
#   docker build -t n4090-verify --target verify .                check results, no torch
#   docker build -t n4090-kit:cpu --build-arg LOCK=cpu .          no GPU: smoke, nano
#
# Stages: python -> tools -> {code, packages, verify-packages} -> {verify, main}. What an image keeps was
# made in a stage of its own and is taken from there by a RUN that sets all times to SOURCE_DATE_EPOCH
# and deletes nothing, so that two builds of one commit on one base give the same layers. (COPY would
# date folders by the hour of the build; other stages are mounted on /mnt and /media, which every base
# has.)
ARG BASE_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04@sha256:2ab6381d970b211fb93853796dc6707eb8a72575a375c422b17cf4d8b2641701

# -- python: the base with an interpreter and an init ---------------------------------------------
# A builder lends each step /etc/hosts and takes it away again, which dates /etc, unless there is one.
FROM ${BASE_IMAGE} AS hosts
ARG SOURCE_DATE_EPOCH=1767225600
RUN mkdir -p /tree/etc && : > /tree/etc/hosts && touch -d "@$SOURCE_DATE_EPOCH" /tree/etc/hosts /tree/etc

FROM ${BASE_IMAGE} AS dated
COPY --from=hosts /tree /

FROM dated AS python-apt
RUN --mount=type=bind,source=docker/build,target=/mnt /mnt/apt-install python3 tini

FROM dated AS python
ARG SOURCE_DATE_EPOCH=1767225600
RUN --mount=type=bind,source=docker/build,target=/mnt --mount=type=bind,from=python-apt,target=/media \
    /mnt/keep /media && /mnt/bytecode python3 /usr/lib/python3*

# -- tools: what builds, and stays behind ---------------------------------------------------------
FROM python AS tools
RUN --mount=type=bind,source=docker/build,target=/mnt /mnt/apt-install python3-venv
# Names no machine, fixes what Python would vary, and lets nothing be built from source.
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore \
    PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 TZ=UTC
RUN python3 -m venv /tools && python3 -m venv --without-pip /opt/n4090
COPY docker/build/lock-only docker/build/bytecode docker/build/seal /usr/local/sbin/

# -- code: the kit and the trainer, as a wheel, installed alone -----------------------------------
FROM tools AS code
COPY requirements/cuda.lock /src/requirements/
RUN lock-only hatchling packaging pathspec pluggy tomlkit trove-classifiers \
      < /src/requirements/cuda.lock > /tmp/build.lock \
 && /tools/bin/pip install --only-binary :all: --require-hashes -r /tmp/build.lock
COPY pyproject.toml README.md LICENSE /src/
COPY schema /src/schema
COPY reference /src/reference
COPY kit /src/kit
ARG SOURCE_DATE_EPOCH=1767225600
RUN cd /src && /tools/bin/python -m hatchling build -t wheel -d /tmp/dist \
 && /tools/bin/pip --python /opt/n4090/bin/python install --no-deps --root /code /tmp/dist/*.whl \
 && seal /code/opt

# -- packages: the locked ones, without what only tests, plans and others' models need -------------
FROM tools AS verify-packages
COPY requirements/verify.lock /src/
RUN /tools/bin/pip --python /opt/n4090/bin/python install \
      --only-binary :all: --require-hashes -r /src/verify.lock
ARG SOURCE_DATE_EPOCH=1767225600
RUN seal /opt

FROM tools AS packages
# cuda, or cpu: torch without CUDA, its wheel found by pip or put into docker/wheels first.
ARG LOCK=cuda
COPY requirements/${LOCK}.lock /src/all.lock
RUN --mount=type=bind,source=docker/wheels,target=/wheels \
    lock-only --not absl-py accelerate accessible-pygments aiohappyeyeballs aiohttp aiosignal \
      alabaster annotated-doc annotated-types ast-serialize atheris axe-playwright-python babel \
      beautifulsoup4 brotli contourpy cycler datasets datatrove dill docutils duckdb editables \
      execnet fonttools frozenlist furo gguf gradio-client greenlet grpcio hatchling httpcore \
      httptools httpx humanize hypothesis imagesize iniconfig jiter kiwisolver librt loguru markdown \
      matplotlib mdit-py-plugins mlperf-logging msgpack multidict multiprocess mypy mypy-extensions \
      myst-parser openai orjson pandas pathspec pillow playwright pluggy propcache protobuf \
      py3langid pydantic pydantic-core pyparsing pytest pytest-xdist python-dateutil python-dotenv \
      python-multipart ray roman-numerals ruff scipy securesystemslib shellingham sniffio \
      snowballstemmer sortedcontainers soupsieve sphinx sphinx-basic-ng sphinx-click \
      sphinx-copybutton sphinxcontrib-applehelp sphinxcontrib-devhelp sphinxcontrib-htmlhelp \
      sphinxcontrib-jsmath sphinxcontrib-qthelp sphinxcontrib-serializinghtml sshsig tensorboard \
      tensorboard-data-server tokenizers tomlkit trackio transformers trove-classifiers typer \
      typing-inspection tzdata uvloop watchfiles websockets werkzeug xxhash yarl zstandard < /src/all.lock > /tmp/image.lock \
 && /tools/bin/pip --python /opt/n4090/bin/python install --find-links /wheels \
      --only-binary :all: --require-hashes -r /tmp/image.lock
ARG SOURCE_DATE_EPOCH=1767225600
RUN seal /opt

# -- what both images share -----------------------------------------------------------------------
FROM python AS common
ENV PATH=/usr/local/bin:/opt/n4090/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1 N4090_WORK=/work HF_HOME=/work/cache/huggingface \
    N4090_CODE_TREE=/opt/n4090/share/n4090-kit/code-tree.sha256
ARG SOURCE_DATE_EPOCH=1767225600
LABEL org.opencontainers.image.title="n4090-kit" \
      org.opencontainers.image.description="The best language model one person can train on one RTX 4090 in one day: an open benchmark" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
RUN --mount=type=bind,source=docker/image,target=/mnt /mnt/set-up
WORKDIR /work
ENTRYPOINT ["n4090-kit"]
CMD ["--help"]

# -- verify: checks results; as nobody, without torch ---------------------------------------------
FROM common AS verify
RUN --mount=type=bind,from=verify-packages,source=/opt,target=/mnt cp -a /mnt/. /opt
RUN --mount=type=bind,from=code,source=/code/opt,target=/mnt cp -a /mnt/. /opt
USER 65534:65534
# Last, and in both images: a build argument makes every step after it anew.
ARG SOURCE=""
ARG REVISION=""
LABEL org.opencontainers.image.source="${SOURCE}" org.opencontainers.image.revision="${REVISION}"

# -- main: runs recipes ---------------------------------------------------------------------------
# Triton needs a C compiler and Python's headers, torch.compile on a CPU g++; ssh-keygen signs with
# agents and security keys.
FROM python AS compilers
RUN --mount=type=bind,source=docker/build,target=/mnt \
    /mnt/apt-install gcc g++ libc6-dev python3-dev openssh-client

FROM common AS main
ARG SOURCE_DATE_EPOCH=1767225600
RUN --mount=type=bind,source=docker/build,target=/mnt --mount=type=bind,from=compilers,target=/media \
    /mnt/keep /media
RUN --mount=type=bind,from=packages,source=/opt,target=/mnt cp -a /mnt/. /opt
RUN --mount=type=bind,from=code,source=/code/opt,target=/mnt cp -a /mnt/. /opt
# The supervisor is root with five capabilities at most; what it runs is `trainer`, with none.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility N4090_TRAINER_USER=trainer
HEALTHCHECK --interval=60s --timeout=5s --start-period=120s CMD ["n4090-health"]
ARG SOURCE=""
ARG REVISION=""
LABEL org.opencontainers.image.source="${SOURCE}" org.opencontainers.image.revision="${REVISION}"
