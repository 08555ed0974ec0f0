"""The thin module every algorithm file uses: data, evaluation, online interaction, and the run."""
