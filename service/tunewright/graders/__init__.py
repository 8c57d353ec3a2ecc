"""OpenAI's graders: what scores an answer of a model, by comparing texts, by a formula, by code, or by another model.

`models.py` has the objects as they are sent, `grading.py` computes a reward from them. Strangers write graders, so all
but models' answers are computed in processes with limits (`apart.py` of the service): `calling.py` starts them. It
imports neither torch nor the API.
"""
