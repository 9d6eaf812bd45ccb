"""A study of DICOM files with known voxels, as a scanner would write it."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

SPACING = (0.9, 1.1, 5.0)  # mm between columns, rows and slices
ORIGIN = (-20.0, -30.0, 40.0)  # of the first voxel, in DICOM's directions (left, posterior, up)


def voxels(shape=(24, 20, 6), seed=0):
    """Values by column, row and slice."""
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.uint16)


def write_series(folder, number, name, *, shape=(24, 20, 6), inversion_ms=None, echo_ms=90.0):
    """Write an axial series, a file a slice; return its values by column, row and slice."""
    folder.mkdir(parents=True, exist_ok=True)
    data = voxels(shape, number)
    study, series, frame = (generate_uid(entropy_srcs=[f"{number}{kind}"]) for kind in "abc")
    for index in range(shape[2]):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = MRImageStorage
        image.SOPInstanceUID = generate_uid(entropy_srcs=[f"{number}{index}"])
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.FrameOfReferenceUID = frame
        image.Modality, image.Manufacturer = "MR", "SIEMENS"
        image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
        image.SeriesNumber, image.InstanceNumber = number, index + 1
        image.AcquisitionNumber = 1
        image.SeriesDescription = image.ProtocolName = name
        image.StudyDate = image.SeriesDate = image.AcquisitionDate = "20260101"
        image.StudyTime = image.SeriesTime = image.AcquisitionTime = "120000"
        image.ScanningSequence, image.SequenceVariant = ["SE", "IR"], "SK"
        image.MRAcquisitionType = "2D"
        image.EchoTime, image.RepetitionTime, image.MagneticFieldStrength = echo_ms, 9000.0, 3.0
        if inversion_ms is not None:
            image.InversionTime = inversion_ms
        image.Columns, image.Rows = shape[:2]
        image.PixelSpacing = [SPACING[1], SPACING[0]]
        image.SliceThickness = image.SpacingBetweenSlices = SPACING[2]
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [*ORIGIN[:2], ORIGIN[2] + SPACING[2] * index]
        image.SliceLocation = image.ImagePositionPatient[2]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.PixelRepresentation = 0
        image.PixelData = np.ascontiguousarray(data[:, :, index].T).tobytes()
        image.save_as(folder / f"{number:03d}_{index:03d}.dcm", enforce_file_format=True)
    return data
