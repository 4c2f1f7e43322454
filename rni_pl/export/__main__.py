"""Export a network: python -m rni_pl.export checkpoint=RUN output=model.onnx."""

from rni_pl.cli import export

if __name__ == "__main__":
    export()
