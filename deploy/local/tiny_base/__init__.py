"""The tiny base model of a local deployment, shipped as package data.

This package owns the files in ``model/`` (a Llama-style model of about one
million parameters with a byte-level tokenizer), the script that trains them
from text it generates itself, and the two demonstration tasks that show a
fine-tune changing the model's answers.  Importing the package costs nothing:
nothing here loads a tensor library.
"""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).resolve().parent / "model"
