"""ViTDet and ViTAE (ECCV 2022): two-stage detectors on plain backbones."""
