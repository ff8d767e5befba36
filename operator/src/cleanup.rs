//! Removes what the operator made at run time: the subcommand of the chart's pre-delete hook.
