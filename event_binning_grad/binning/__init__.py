"""Event binning with the unbiased gradient; needs nothing else of this package."""

from event_binning_grad.binning.operator import bin_events

__all__ = ["bin_events"]
