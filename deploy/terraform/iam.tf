# The chain: server nodes -> kiam-server -> application roles. Each link is named by its full ARN on
# both sides; nothing else may step in between.

data "aws_caller_identity" "here" {}
data "aws_partition" "here" {}

locals {
  account   = data.aws_caller_identity.here.account_id
  partition = data.aws_partition.here.partition

  # What a node needs and no more. Pods never see it: kiam's agent answers for the metadata service.
  node_policies = toset([
    "AmazonEKSWorkerNodePolicy",
    "AmazonEKS_CNI_Policy",
    "AmazonEC2ContainerRegistryReadOnly",
  ])
}

data "aws_iam_policy_document" "trust_eks" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["eks.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "cluster" {
  name               = "${var.name}-cluster"
  assume_role_policy = data.aws_iam_policy_document.trust_eks.json
}

resource "aws_iam_role_policy_attachment" "cluster" {
  role       = aws_iam_role.cluster.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/AmazonEKSClusterPolicy"
}

data "aws_iam_policy_document" "trust_ec2" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "worker_node" {
  name               = "${var.name}-worker-node"
  assume_role_policy = data.aws_iam_policy_document.trust_ec2.json
}

resource "aws_iam_role_policy_attachment" "worker_node" {
  for_each = local.node_policies

  role       = aws_iam_role.worker_node.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.key}"
}

resource "aws_iam_role" "server_node" {
  name               = "${var.name}-server-node"
  assume_role_policy = data.aws_iam_policy_document.trust_ec2.json
}

resource "aws_iam_role_policy_attachment" "server_node" {
  for_each = local.node_policies

  role       = aws_iam_role.server_node.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.key}"
}

# Link one: server nodes may become kiam-server.
data "aws_iam_policy_document" "become_server" {
  statement {
    actions   = ["sts:AssumeRole"]
    resources = [aws_iam_role.server.arn]
  }
}

resource "aws_iam_role_policy" "become_server" {
  name   = "become-kiam-server"
  role   = aws_iam_role.server_node.id
  policy = data.aws_iam_policy_document.become_server.json
}

data "aws_iam_policy_document" "trust_server_node" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "AWS"
      identifiers = [aws_iam_role.server_node.arn]
    }
  }
}

resource "aws_iam_role" "server" {
  name                 = "${var.name}-server"
  description          = "kiam's servers; assumes the roles of pods"
  assume_role_policy   = data.aws_iam_policy_document.trust_server_node.json
  max_session_duration = 3600
}

# Link two: kiam-server may become any role under the path, and no other.
data "aws_iam_policy_document" "become_apps" {
  statement {
    actions = concat(
      ["sts:AssumeRole"],
      var.session_tags ? ["sts:TagSession"] : [],
    )
    resources = ["arn:${local.partition}:iam::${local.account}:role${var.app_role_path}*"]
  }
}

resource "aws_iam_role_policy" "become_apps" {
  name   = "become-application-roles"
  role   = aws_iam_role.server.id
  policy = data.aws_iam_policy_document.become_apps.json
}

# Link three, once for each application: a role that trusts kiam-server. This one is the example's.
resource "aws_s3_bucket" "example" {
  bucket_prefix = "${var.name}-example-"
  force_destroy = true
}

data "aws_iam_policy_document" "list_example" {
  statement {
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.example.arn]
  }
}

module "bucket_reader" {
  source = "./modules/app-role"

  name         = "${var.name}-bucket-reader"
  path         = var.app_role_path
  server_role  = aws_iam_role.server.arn
  policy       = data.aws_iam_policy_document.list_example.json
  session_tags = var.session_tags
}
