"""AiT, All in Tokens (ICCV 2023): objects and depth as sequences over one vocabulary."""
