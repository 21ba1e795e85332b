"""What tests share: configs, corpora, models, oracles, commands in processes of their own. No test is in here."""
