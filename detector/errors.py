"""Errors of the detector, by what their reader can do about them.

DetectorError
├── CheckpointError   a checkpoint is missing, damaged or of another kind: give another one
├── DeviceError       the device, precision or kernels asked for are not here: change the model settings
├── InputFileError    a file given by the user cannot be read as what it should be: mend the file
└── TrainingError     no model can be trained from this data, or from where a killed training stood: give other data, or
                      start over
"""


class DetectorError(Exception):
    """Base of everything the detector raises for a reason its user can act upon."""


class CheckpointError(DetectorError):
    """A checkpoint is missing, incomplete, damaged, of another format, or cannot be written."""


class DeviceError(DetectorError):
    """The device, precision or kernels asked for are not available, or the device's memory is too small."""


class InputFileError(DetectorError):
    """A sessions or labels file cannot be read; the message names the file and, if any, the line."""


class TrainingError(DetectorError):
    """The training data is too small or contradicts itself, training diverged, or where it stood cannot be used."""
