"""How accurate is the detector, protocol by protocol, beside simple baselines of the same run?

`python -m benchmarks.accuracy` runs every protocol of `protocols.py` with every detector of `detectors.py` that fits
it, on the shared data. Nothing a detector learns from is in the test part: a split never divides a session id, the
vocabulary comes from the training part, thresholds are fixed beforehand or on the validation part. What is chosen on
the test part itself is called "best" and stands beside for comparison only.

`python -m benchmarks.accuracy.promises` asks whether thresholds keep what they promise without labels,
`python -m benchmarks.accuracy.ablations` what each part of the model is worth,
`python -m benchmarks.accuracy.sizes` what its sizes cost, and
`python -m benchmarks.accuracy.robustness` what is lost where
logs are not stable.
"""

import os

# As `logmamba` itself does, and before NumPy and PyTorch are loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
