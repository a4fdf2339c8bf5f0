"""A job's progress and figures, sent to the tracker of whoever waits for it: wandb, TensorBoard or MLflow.

`tracked` is the one door. The tracker's library runs in a process of its own, under the login of the person who waits:
it may raise, hang, ask for a password or end, and neither the job nor the waiting notices more than a sentence.
"""
