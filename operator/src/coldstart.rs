//! Cold-start plans: one signed ConfigMap `fetchr-plan` in each namespace whose pods may start while no operator answers.
