from ngopt.graph import NeuralGraph
def named_role(graph, number, role):
    return role.role, role.blocks
