"""Encoders of KerasHub, an extra: CLIP and SigLIP as dual encoders. Read `encoder` first."""
