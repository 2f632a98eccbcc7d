"""What a person can set: the fields with their units and trades, where values come from, and what makes them valid."""

from daemon.config.fields import (
    ApiConfig,
    Config,
    EngineConfig,
    LanConfig,
    LimitsConfig,
    LogConfig,
    PatienceConfig,
    ProbeConfig,
    RelayConfig,
    RoundConfig,
    VerifyConfig,
)
from daemon.config.layers import BAD_NAME, Base, ConfigError, Loaded, Origin, load, masked

__all__ = [
    "BAD_NAME",
    "ApiConfig",
    "Base",
    "Config",
    "ConfigError",
    "EngineConfig",
    "LanConfig",
    "LimitsConfig",
    "Loaded",
    "LogConfig",
    "Origin",
    "PatienceConfig",
    "ProbeConfig",
    "RelayConfig",
    "RoundConfig",
    "VerifyConfig",
    "load",
    "masked",
]
