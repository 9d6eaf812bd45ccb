"""The one recipe from a FLAIR to what a network's input is made of.

The steps of the workflow run the same parts one by one, with files between them.
"""

from dataclasses import dataclass

from bagau_bids.preprocessing import bias_field, brain_mask, registration
from bagau_bids.preprocessing.template import Template
from bagau_bids.spaces import Image

# Raised with every change of a result, from reading the FLAIR to the tensors of the network:
# what is kept of earlier runs and for trainings is then made anew.
PREPROCESSING_VERSION = "2"


@dataclass(frozen=True)
class Preprocessed:
    """A FLAIR that is ready for the network, and how it became so.

    Attributes
    ----------
    brain : BrainMask
    corrected : Image
        The FLAIR without its bias field, float32.
    registration : Registration
        The template on the FLAIR's grid.
    """

    brain: brain_mask.BrainMask
    corrected: Image
    registration: registration.Registration


def preprocess(flair: Image, template: Template, *, method: str = "robust") -> Preprocessed:
    """Outline the brain, take the bias field off, and register the template.

    Parameters
    ----------
    flair : Image
        As :func:`bagau_bids.preprocessing.conform.conform` reads it.
    template, method
        As for :func:`bagau_bids.preprocessing.registration.register_template`.

    Raises
    ------
    ProcessingError
        If a part finds nothing that it could work with; the message says which and why.
    """
    brain = brain_mask.brain_mask(flair)
    corrected = bias_field.correct_bias_field(flair, brain.mask)
    registered = registration.register_template(corrected, brain.mask, template, method=method)
    return Preprocessed(brain, corrected, registered)
