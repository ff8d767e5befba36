//! A pod and its proxy -> the pod with a sidecar; pure.
