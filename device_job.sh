# processes=1 minutes=6
# GPU: tests of carried states, then costs of an event against its session's length. Results in $OUT/long.
set -u
: "${PYTHON:?}" "${OUT:?}"
out=$OUT/long; mkdir -p "$out"
export PYTHONPATH=$PWD OMP_NUM_THREADS=1 COLUMNS=200 PYTHONUNBUFFERED=1
nvidia-smi > "$out/smi.txt" 2>&1
timeout 150 $PYTHON -m pytest -q -x --timeout=0 -p no:xdist tests/detector/model/test_carried.py tests/detector/scoring/test_growing_sessions.py > "$out/tests.txt" 2>&1
tail -5 "$out/tests.txt"
timeout 150 $PYTHON -m benchmarks.growing --device cuda --size reference --precision float32 bfloat16 --sessions 1 100 1000 --events 1 --lengths 20 500 5000 --rounds 5 --output "$out/growing.json" > "$out/growing.txt" 2>&1
tail -30 "$out/growing.txt"
cat > "$out/alone.py" <<'P'
import sys, time
from statistics import median
import numpy as np, torch
from dataclasses import replace
from detector.checkpoint import demo_checkpoint, load
from detector.model.model import DetectorModel, ModelConfig
from detector.scoring.scorer import Scorer
from detector.scoring.scores import Growth, Sequences
shipped = load(demo_checkpoint())
config = ModelConfig.preset("reference", len(shipped.vocabulary)); torch.manual_seed(0)
model = DetectorModel(config, torch.from_numpy(shipped.vocabulary.template_features()))
checkpoint = replace(shipped, manifest=shipped.manifest.model_copy(update={"model": config}), weights=model.state_dict(), judge=None)
for precision in ("float32", "bfloat16"):
    for sessions in (1, 100, 1000):
        grown, whole = (Scorer(checkpoint, device="cuda", precision=precision, cache_size=0, growing=g) for g in (4000, 0))
        numbers = 0
        for length in (20, 500, 5000):
            r = np.random.default_rng(length)
            tokens = r.integers(3, 10, (sessions, length + 40))
            ids = np.arange(sessions) + 1 + numbers; numbers += sessions
            def of(begin, end): return Sequences(np.ascontiguousarray(tokens[:, begin:end]).ravel(), np.arange(1, sessions + 1) * (end - begin))
            took = {"grown": [], "start": []}
            if length > 128: grown.go_on(Growth(ids, np.zeros(sessions, np.int64), of(0, length)))
            for n in range(length, length + 12):
                t = time.perf_counter()
                if length > 128: a = grown.go_on(Growth(ids, np.full(sessions, n), of(n, n + 1)))
                else: a = grown.score_columns(of(0, n + 1), 0).scores[n :: n + 1]
                took["grown"].append(time.perf_counter() - t)
                if n < length + 5 or length < 5000:
                    t = time.perf_counter(); b = whole.score_columns(of(0, n + 1), 0).scores; took["start"].append(time.perf_counter() - t)
                    assert a.tobytes() == np.ascontiguousarray(b.reshape(sessions, -1)[:, -1]).tobytes(), "bits differ"
            print(precision, sessions, length, *(f"{k} {1e6 * median(v[2:]) / sessions:.2f} us" for k, v in took.items()), flush=True)
P
timeout 120 $PYTHON "$out/alone.py" > "$out/alone.txt" 2>&1
tail -20 "$out/alone.txt"
