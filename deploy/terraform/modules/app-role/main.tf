# A role that pods may have: it trusts kiam's server role, by ARN, and nobody else.

terraform {
  required_version = ">= 1.5"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.60, < 7.0"
    }
  }
}

variable "name" {
  description = "Name of the role."
  type        = string
}

variable "path" {
  description = "IAM path, within what the server role may assume."
  type        = string
  default     = "/kiam/"
}

variable "server_role" {
  description = "ARN of kiam's server role, of this account or another."
  type        = string
}

variable "policy" {
  description = "What the role may do: a policy document."
  type        = string
}

variable "session_tags" {
  description = "Accept session tags."
  type        = bool
  default     = false
}

variable "external_id" {
  description = "Demand this external id (the pod's iam.amazonaws.com/external-id). Empty: none."
  type        = string
  default     = ""
}

variable "max_session_duration" {
  description = "Longest session in seconds. From an assumed role STS gives one hour at most, whatever this says."
  type        = number
  default     = 3600
}

data "aws_iam_policy_document" "trust" {
  statement {
    sid     = "KiamServer"
    actions = ["sts:AssumeRole"]

    principals {
      type        = "AWS"
      identifiers = [var.server_role]
    }

    dynamic "condition" {
      for_each = var.external_id == "" ? [] : [var.external_id]

      content {
        test     = "StringEquals"
        variable = "sts:ExternalId"
        values   = [condition.value]
      }
    }
  }

  dynamic "statement" {
    for_each = var.session_tags ? [var.server_role] : []

    content {
      sid     = "KiamServerTags"
      actions = ["sts:TagSession"]

      principals {
        type        = "AWS"
        identifiers = [statement.value]
      }
    }
  }
}

resource "aws_iam_role" "this" {
  name                 = var.name
  path                 = var.path
  assume_role_policy   = data.aws_iam_policy_document.trust.json
  max_session_duration = var.max_session_duration
}

resource "aws_iam_role_policy" "this" {
  name   = "application"
  role   = aws_iam_role.this.id
  policy = var.policy
}

output "arn" {
  description = "ARN of the role."
  value       = aws_iam_role.this.arn
}
