"""What the evaluation scripts compute: numbers with intervals, from tokens and a judge. Knows no model of ours."""
