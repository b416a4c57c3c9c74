# The cluster and its two kinds of nodes: some for kiam's servers, whose node role may become the
# server's role, and the rest, whose node role may not.

resource "aws_eks_cluster" "this" {
  name     = var.name
  version  = var.kubernetes_version
  role_arn = aws_iam_role.cluster.arn

  vpc_config {
    subnet_ids              = aws_subnet.private[*].id
    endpoint_private_access = true
    endpoint_public_access  = length(var.endpoint_public_cidrs) > 0
    public_access_cidrs     = length(var.endpoint_public_cidrs) > 0 ? var.endpoint_public_cidrs : null
  }

  access_config {
    authentication_mode                         = "API"
    bootstrap_cluster_creator_admin_permissions = true
  }

  depends_on = [aws_iam_role_policy_attachment.cluster]
}

# The CNI's pods are in the node's network: the node role reaches them, whatever kiam does.
resource "aws_eks_addon" "vpc_cni" {
  cluster_name = aws_eks_cluster.this.name
  addon_name   = "vpc-cni"
}

resource "aws_eks_addon" "kube_proxy" {
  cluster_name = aws_eks_cluster.this.name
  addon_name   = "kube-proxy"
}

resource "aws_eks_addon" "coredns" {
  cluster_name = aws_eks_cluster.this.name
  addon_name   = "coredns"

  # Agents look their servers up before they are ready, so DNS must not wait for them.
  configuration_values = jsonencode({
    tolerations = concat(
      [{ key = "CriticalAddonsOnly", operator = "Exists" }],
      var.startup_taint == "" ? [] : [{ key = var.startup_taint, operator = "Exists" }],
    )
  })

  depends_on = [aws_eks_node_group.workers]
}

# What every node must have: IMDSv2 only, and an answer that does not survive a hop. A pod that is
# not in the node's network then gets nothing from the node's metadata service even where no agent
# runs. kiam's agent and the servers with useHostNetwork are in the node's network and reach it.
resource "aws_launch_template" "node" {
  for_each = toset(["servers", "workers"])

  name_prefix = "${var.name}-${each.key}-"

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    http_protocol_ipv6          = "disabled"
    instance_metadata_tags      = "disabled"
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size = 50
      volume_type = "gp3"
      encrypted   = true
    }
  }

  tag_specifications {
    resource_type = "instance"

    tags = merge(var.tags, {
      Name = "${var.name}-${each.key}"
    })
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_eks_node_group" "servers" {
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "servers"
  node_role_arn   = aws_iam_role.server_node.arn
  subnet_ids      = aws_subnet.private[*].id
  ami_type        = var.ami_type
  instance_types  = var.server_instance_types

  launch_template {
    id      = aws_launch_template.node["servers"].id
    version = aws_launch_template.node["servers"].latest_version
  }

  scaling_config {
    min_size     = var.server_nodes
    desired_size = var.server_nodes
    max_size     = var.server_nodes + 1
  }

  labels = {
    "kiam.io/servers" = "true"
  }

  # Nothing that is not named in the tolerations below shares these nodes: their role can become the
  # server's, and so every pod's.
  taint {
    key    = "kiam.io/servers"
    value  = "true"
    effect = "NO_SCHEDULE"
  }

  depends_on = [aws_iam_role_policy_attachment.server_node]
}

resource "aws_eks_node_group" "workers" {
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "workers"
  node_role_arn   = aws_iam_role.worker_node.arn
  subnet_ids      = aws_subnet.private[*].id
  ami_type        = var.ami_type
  instance_types  = var.worker_instance_types

  launch_template {
    id      = aws_launch_template.node["workers"].id
    version = aws_launch_template.node["workers"].latest_version
  }

  scaling_config {
    min_size     = var.worker_nodes.min
    desired_size = var.worker_nodes.desired
    max_size     = var.worker_nodes.max
  }

  # A worker takes pods once its agent intercepts and has its snapshot.
  dynamic "taint" {
    for_each = var.startup_taint == "" ? [] : [var.startup_taint]

    content {
      key    = taint.value
      value  = "true"
      effect = "NO_SCHEDULE"
    }
  }

  lifecycle {
    # The autoscaler's.
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [aws_iam_role_policy_attachment.worker_node]
}
