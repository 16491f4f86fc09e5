"""The best rule for one family of training runs: `ngopt specialize`.

family      members of a family, and their training runs, stacked
hand_rules  the default, SOAP, Adam and Muon, each tuned
evolution   rates by parameter and time on top of it, by antithetic evolution
report      comparison on unseen members: table, picture, JSON
run         all of it
"""
