# The study on CPUs, without root. The wheels of torch for Linux are built for CUDA; what only a card needs is left out.
#     docker build -t iumad . && docker run --rm iumad                                    # the smoke study and its book
#     docker run --rm -p 8888:8888 iumad jupyter lab --ip 0.0.0.0 notebooks               # its notebooks
FROM python:3.11-slim AS wheels
COPY requirements.lock .ci/trim_cuda.py ./
RUN python -m venv /opt/iumad \
    && /opt/iumad/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
    && /opt/iumad/bin/python trim_cuda.py

FROM python:3.11-slim
RUN useradd --create-home reader
COPY --from=wheels /opt/iumad /opt/iumad
ENV PATH=/opt/iumad/bin:$PATH OMP_NUM_THREADS=1
COPY --chown=reader . /home/reader/iumad
WORKDIR /home/reader/iumad
RUN pip install --no-cache-dir --no-deps --editable . && chown -R reader .
USER reader
CMD ["sh", "-c", "iumad run params/smoke.yaml && iumad book params/smoke.yaml"]
