"""From a study to results: stages named by a hash of all they depend on, a store that holds each whole or not at all, and a runner."""
