variable "region" {
  description = "AWS Region of the cluster."
  type        = string
}

variable "name" {
  description = "Name of the cluster, and prefix of everything made for it."
  type        = string
  default     = "kiam"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}$", var.name))
    error_message = "The name must be lower-case letters, digits and dashes, 2 to 31 characters."
  }
}

variable "kubernetes_version" {
  description = "EKS version. 1.26 is the oldest that the chart accepts."
  type        = string
  default     = "1.33"
}

variable "cidr" {
  description = "Address range of the VPC; a /16 is cut into six /20."
  type        = string
  default     = "10.40.0.0/16"
}

variable "zones" {
  description = "How many availability zones to use."
  type        = number
  default     = 3

  validation {
    condition     = var.zones >= 2 && var.zones <= 3
    error_message = "EKS needs two zones; this VPC is cut for at most three."
  }
}

variable "endpoint_public_cidrs" {
  description = "Networks that may reach the Kubernetes API from outside. Empty: none, the API is private."
  type        = list(string)
  default     = []
}

variable "ami_type" {
  description = "AMI of the nodes. The README says which of them have io_uring."
  type        = string
  default     = "AL2023_x86_64_STANDARD"
}

variable "server_instance_types" {
  description = "Instance types of the nodes that run kiam's servers."
  type        = list(string)
  default     = ["t3.medium"]
}

variable "server_nodes" {
  description = "Number of those nodes."
  type        = number
  default     = 2
}

variable "worker_instance_types" {
  description = "Instance types of the nodes that run everything else."
  type        = list(string)
  default     = ["m6i.large"]
}

variable "worker_nodes" {
  description = "Smallest, wanted and largest number of worker nodes."
  type = object({
    min     = number
    desired = number
    max     = number
  })
  default = {
    min     = 2
    desired = 2
    max     = 10
  }
}

variable "startup_taint" {
  description = "Taint key that workers join with and that kiam's server removes. Empty: none."
  type        = string
  default     = "kiam.io/agent-not-ready"
}

variable "app_role_path" {
  description = "IAM path of the roles that pods may have. kiam's server may assume roles under it and no others."
  type        = string
  default     = "/kiam/"

  validation {
    condition     = can(regex("^/([A-Za-z0-9_.-]+/)+$", var.app_role_path))
    error_message = "The path must begin and end with a slash and must not be / alone: that would be every role of the account."
  }
}

variable "session_tags" {
  description = "Allow session tags (server.sessionTags of the chart)."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = {}
}
