"""A step that fails when another is at work; spawned workers import it by this name."""

import time
from pathlib import Path

from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits


class ExclusiveInputSpec(BaseInterfaceInputSpec):
    card = traits.Str()
    use_gpu = traits.Bool(True, usedefault=True)
    after = traits.Bool(desc="output of the step that goes before")


class ExclusiveOutputSpec(TraitedSpec):
    done = traits.Bool()


class Exclusive(SimpleInterface):
    """A step that fails when another has the card."""

    input_spec = ExclusiveInputSpec
    output_spec = ExclusiveOutputSpec

    def _run_interface(self, runtime):
        Path(self.inputs.card).touch(exist_ok=False)
        time.sleep(0.5)
        Path(self.inputs.card).unlink()
        self._results["done"] = True
        return runtime
